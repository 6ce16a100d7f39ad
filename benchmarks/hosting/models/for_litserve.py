"""The models as LitServe serves them: python for_litserve.py MODEL PORT."""

import os
import sys
import time

import litserve
import numpy as np


class Upper(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["text"]

    def predict(self, text):
        return text.upper()

    def encode_response(self, output):
        return {"output": output}


class Sleeper(litserve.LitAPI):
    """Takes 10 ms for a batch, and answers how many requests were in it."""

    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["x"]

    def predict(self, x):
        time.sleep(0.010)
        return [len(x)] * len(x) if self.max_batch_size > 1 else 1

    def encode_response(self, output):
        return {"output": output}


class MLP(litserve.LitAPI):
    def setup(self, device):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(os.environ["MLP"])

    def decode_request(self, request):
        return np.array(request["x"], np.float32)

    def predict(self, x):
        rows = x if self.max_batch_size > 1 else x[np.newaxis]
        (output,) = self.session.run(None, {"x": np.asarray(rows)})
        return output if self.max_batch_size > 1 else output[0]

    def encode_response(self, output):
        return {"output": output.tolist()}


MODELS = {
    "upper": (Upper, 1),
    "sleeper": (Sleeper, 8),
    "sleeper_alone": (Sleeper, 1),
    "mlp": (MLP, 32),
    "mlp_alone": (MLP, 1),
}

if __name__ == "__main__":
    kind, max_batch_size = MODELS[sys.argv[1]]
    server = litserve.LitServer(kind(max_batch_size=max_batch_size), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
