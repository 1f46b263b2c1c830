-- the twenty captions with most false claims or least like people's, per evaluation
SELECT evaluation, style, key, words, false_claims, round(cider, 4) AS cider,
       round(clip_score_worst, 4) AS clip_score_worst
FROM evaluated_captions WHERE $run IN ('', run)
QUALIFY row_number() OVER (PARTITION BY evaluation, style
                           ORDER BY false_claims DESC NULLS LAST, cider NULLS LAST, uid) <= 20
ORDER BY evaluation, style, false_claims DESC NULLS LAST, cider NULLS LAST, uid
