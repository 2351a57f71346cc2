"""What a run asks of data and is made of: values that a plan, a sample and a message all speak of."""
