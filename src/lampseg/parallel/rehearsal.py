"""stand-in"""

rehearse = None
