"""A page to try a model in the browser, and the same page as a Space on the Hub."""
