-- similarity of captions to their images (cosine), per run and style
SELECT run, style, count(similarity) AS captions,
       round(avg(similarity), 4) AS mean, round(quantile_cont(similarity, 0.05), 4) AS p05,
       round(median(similarity), 4) AS median, round(quantile_cont(similarity, 0.95), 4) AS p95,
       round(avg(similarity_min), 4) AS mean_of_worst_chunk
FROM caption_texts WHERE similarity IS NOT NULL AND $run IN ('', run)
GROUP BY ALL ORDER BY ALL
