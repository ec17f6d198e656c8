"""What every metric means, by where it comes from."""
