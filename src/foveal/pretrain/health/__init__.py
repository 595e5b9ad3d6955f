"""Whether a run is well: what is measured, the signs of trouble in it, and the page that shows them."""
