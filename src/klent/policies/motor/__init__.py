"""Motor commands: Gaussian policies of robots, and how far the policy that recorded their data is from them."""
