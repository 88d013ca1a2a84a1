# SPDX-License-Identifier: Apache-2.0
"""HTTP in: routes, authentication, errors in OpenAI form."""
