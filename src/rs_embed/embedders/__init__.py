"""Models: their table (`cards`), and embedders of patches (`onthefly_remoteclip`) and texts (`text`)."""
