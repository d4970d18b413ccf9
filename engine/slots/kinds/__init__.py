"""How each kind of slot is judged: its cases, inputs, reference, bounds and properties. The contracts are one level up."""
