"""The ground floor: what corrections, losses and advantages are all built from.

arguments  arguments of functions as settings
arrays     the array type of signatures, fp32 in and out
checks     what every public function does at the door
ratios     log-ratios of two policies, and the divergences of one
units      sums over the sequences, segments and turns of a row
groups     sums over the rows that answer one prompt
rows       many sums over each row in one walk
selection  the k largest, or those up to a mean, without a sort
metrics    metrics that pool exactly
"""
