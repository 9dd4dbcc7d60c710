"""Files on disk to batches: vocabularies, corpora, the plan of the batches, and the reader that runs ahead."""
