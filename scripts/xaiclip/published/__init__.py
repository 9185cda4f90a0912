"""What is published elsewhere: weights and data sets, fetched, compared and unpacked."""
