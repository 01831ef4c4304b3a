"""What runs in a user's process."""
