"""Models: what each is (`catalog`), and how patches become vectors (`onthefly_remoteclip`)."""
