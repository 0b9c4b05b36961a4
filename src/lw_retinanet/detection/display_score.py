"""The smallest score of detections that are shown to people; free of torch, for the command line."""

DISPLAY_SCORE = 0.3
