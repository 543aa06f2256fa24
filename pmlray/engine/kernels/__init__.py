"""Most expensive operations of the frozen suffix: attention, RMSNorm, compiled MLPs."""
