"""Ways to make a direction per block out of the two poles' states; one file each."""
