"""How fast the ops are: against the machine's own ceilings and against peers, side by side in one
run.
"""
