-- what each raw shard gave to each mix
SELECT run AS mix, source_shard AS shard, count(*) AS samples,
       count(*) FILTER (status = 'ok') AS mixed, round(sum(jpg_size) / 1e6, 1) AS megabytes
FROM mix WHERE $mix IN ('', run)
GROUP BY ALL ORDER BY ALL
