"""SeqLoRA itself: reads like the paper."""
