# SPDX-License-Identifier: Apache-2.0
"""`python -m vllm_gateway.cli`, where the command is not on the path."""

import sys

from vllm_gateway.cli.main import main

sys.exit(main())
