"""Every bound on what we accept or send, each with its reason.

Nothing is allocated before a check.
"""

BLOCK_BYTES = 16 * 1024
"""Unit of a transfer's bitmap: the finest grain at which a transfer resumes (protocol §4)."""

CHUNK_BLOCKS_MAX = 7
"""Blocks in one chunk message: 7 x 16 KiB and its header stay below the 128 KiB (131,072 bytes)
that AWS IoT Core enforces, the smallest limit among the brokers in use."""

CHUNK_HEADER_BYTES_MAX = 512
"""Upper bound of a chunk message's header, so that a sender can respect a packet limit."""

MESSAGE_BYTES_MAX = 128 * 1024
"""Largest message we send or decode."""

KEYS_MAX = 8
"""Keys of the coordinator in one key set: the one in use, and those that may follow."""

CERTIFICATE_BYTES_MAX = 2048
"""An X.509 certificate, or a request for one, in DER; ours have about 400, with Ed25519's keys."""

ENROL_BYTES_MAX = 4096
"""Largest message to the registrar: it holds one request for a certificate."""

BLOB_BYTES_MAX = 2 * 1024**3
"""Largest blob: the size limit of a protobuf file, hence of one ONNX graph."""

MANIFEST_BYTES_MAX = 4 * 1024**2
"""Largest `manifest.json`; 10,000 parameters take about 1.5 MB."""

GRAPH_BYTES_MAX = 256 * 1024**2
"""Largest ONNX file that a device loads; weights travel separately, so graphs stay small."""

OPERATIONS_MAX = 10**13
"""Most operations of a graph for each example, weighted by their time (`onnx_operations`): two
minutes of one core for large matrix products, less than an hour for anything else. The products
of a training step are 2.5e10 for ResNet-50, 8e11 for GPT-2 with 1,024 tokens (six for each weight
and place)."""

PARAMETERS_MAX = 100_000
"""Most parameter tensors in a manifest."""

ELEMENTS_MAX = 1 << 29
"""Most float32 values in a model: 2 GiB, the largest blob."""

MEASURES_MAX = 33
"""Most measures of a model: its loss, and the 32 that a manifest may name."""

METRIC_MAX = 1e300
"""Largest loss that is reported, so that sums of them stay finite, too."""

DEVICES_MAX = 10_000
"""Devices online at one coordinator: as many as Google's took part in a round at its peak
(Bonawitz et al. 2019, section 9)."""

VALUE_ABS_MAX = 1e30
"""Largest absolute value in an update: sums of any number of them stay finite in float32."""

IDENTIFIER_CHARS_MAX = 64
"""Longest federation, device or update name: they are MQTT topic levels and file names."""

NAMES_MAX = 100
"""Most devices named in one list of a status: of a large fleet one reads the counts."""

STATUS_BYTES_MAX = BLOCK_BYTES
"""Largest status: any broker whose packet limit can carry one block can carry it."""
