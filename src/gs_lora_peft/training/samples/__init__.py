"""The samples of a training: joint batches of both sets, and sets to keep that come as a stream."""
