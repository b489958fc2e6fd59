"""One module for each layout in which datasets come: a folder, or a listing, -> the cases in it."""
