"""layerkit: Lambda layers that are small, proven to import, and deployed so that they can be undone.

The layer model and everything that acts on it. Nothing in here knows Invoke, flags or exit codes; ``tasks/`` does.
"""

__version__ = "0.1.0"
