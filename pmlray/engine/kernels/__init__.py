"""Operations of the frozen suffix that cost most: attention, RMSNorm, compiled MLPs."""
