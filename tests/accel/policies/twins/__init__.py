"""Float64 twins of the policies, one file per policy, named as the policy: `twin(policy, q, k, v, layout, scale)`.

Each writes out the measure of every query, in at most 20 lines, and shares nothing with the fast path.
"""
