"""What is measured of every image and text: one stage, one table, one file each."""
