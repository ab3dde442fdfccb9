"""``v2f doctor``: does this machine have everything that a run needs? A check for each subject, and what each finds."""
