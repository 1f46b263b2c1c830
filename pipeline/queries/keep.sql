-- what keep-lists keep, and why they drop the rest, with an example
WITH told AS (
  SELECT run, CASE WHEN keep THEN 'kept' ELSE coalesce(reason, 'not_kept') END AS verdict,
         shard || '/' || key AS sample
  FROM keep WHERE $keep IN ('', run))
SELECT run AS keep_list, verdict, count(*) AS samples,
       round(count(*) / sum(count(*)) OVER (PARTITION BY run), 4) AS share, min(sample) AS example
FROM told GROUP BY run, verdict ORDER BY run, verdict <> 'kept', samples DESC, verdict
