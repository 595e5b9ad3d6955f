"""Pages in a browser, and the endpoints behind them."""
