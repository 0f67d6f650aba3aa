"""How a trained network segments images: files, web page, ONNX."""
