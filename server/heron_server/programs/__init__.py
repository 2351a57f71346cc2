"""Programs: the client's side of the model as ONNX graphs whose weights are inputs, proved equal to the model before they are published."""
