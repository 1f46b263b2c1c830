-- the twenty captions that fit their image least, per run and style
SELECT run, style, shard || '/' || key AS sample, round(similarity, 4) AS similarity, status, text
FROM caption_texts JOIN (SELECT run, uid, key FROM captions) USING (run, uid)
WHERE similarity IS NOT NULL AND $run IN ('', run)
QUALIFY row_number() OVER (PARTITION BY run, style ORDER BY similarity, uid) <= 20
ORDER BY run, style, similarity, sample
