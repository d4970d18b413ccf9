"""The shapes that are judged, per kind of slot, sized for a CPU core and for a GPU."""
