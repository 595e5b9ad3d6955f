"""What people say about images, and what features make of it: labels and masks, carried to the images like them."""
