"""Render the tables and cards in model_cards/ again, from the records beside them; see u2pl_hf/commands/cards.py."""

from u2pl_hf.commands.cards import main

if __name__ == "__main__":
    main()
