"""What the charts are kept in step with our configs by."""
