"""What a terminal shows of work in progress, and pictures of masks."""
