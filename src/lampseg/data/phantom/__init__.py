"""The phantom: synthetic head-and-neck CT with nine organs."""
