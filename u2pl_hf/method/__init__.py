"""U2PL itself: pseudo-labels, mixing, queues, losses, teacher, schedules, and the step that joins them."""
