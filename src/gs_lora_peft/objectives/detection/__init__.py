"""What forgetting means for an object detector."""
