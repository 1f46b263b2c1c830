-- how large training images are, by the shorter side in pixels
SELECT run AS mix, CASE WHEN least(width, height) < 64 THEN 'below 64'
                        WHEN least(width, height) < 256 THEN '64 to 255'
                        WHEN least(width, height) < 512 THEN '256 to 511'
                        WHEN least(width, height) < 1024 THEN '512 to 1023'
                        ELSE '1024 and more' END AS shorter_side,
       count(*) AS samples, round(sum(jpg_size) / 1e6, 1) AS megabytes
FROM mix WHERE status = 'ok' AND $mix IN ('', run)
GROUP BY ALL ORDER BY mix, min(least(width, height))
