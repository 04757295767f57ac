"""The only place where private names of torch stand: each has a fallback, and no other part asks.

What a torch to come may lack, it lacks here: a name that is gone costs the one feature that needs
it, and that says so once. All else goes on.
"""
