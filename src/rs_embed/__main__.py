"""The command `rs-embed` as `python -m rs_embed`."""

from rs_embed.cli.main import main

if __name__ == "__main__":
    main()
