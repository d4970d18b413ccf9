"""Figures drawn on the server: SVG from numbers, and Plotly's JSON where a reader needs to hover and zoom.

Pure functions of protocol structs and numbers: no models, no requests. SVG carries classes of the design system, no
colours and no styles, so that it follows the theme under a strict content security policy.
"""
