"""foveal: from unlabelled images to a frozen vision backbone that works."""
