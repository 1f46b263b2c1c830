"""From columns to a keep-list: predicates in SQL, presets, top fractions, clusters, funnels."""
