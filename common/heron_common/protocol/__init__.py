"""What the two sides say to each other: messages, their protobuf twins, chunks and seals, and what is checked of them."""
