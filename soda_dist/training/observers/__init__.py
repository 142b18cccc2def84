"""Where a run's metrics and pictures go besides its folder: TensorBoard, Weights & Biases, MLflow."""
