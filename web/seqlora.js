// The one file that the editor loads; only here are its modules imported.
import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { library } from './library/tab.mjs'
import { missing } from './library/missing.mjs'
import { olderWorkflows } from './training/older_workflows.mjs'
import { panels } from './training/panels.mjs'
import { pictures } from './pictures/pictures.mjs'
import { picker } from './picker/picker.mjs'
import { completion } from './prompt/completion.mjs'
import { loadWords, t } from './shared/i18n.mjs'
import { titleWidth } from './shared/title_width.mjs'

const parts = [completion, panels, library, missing, picker, pictures, olderWorkflows, titleWidth].map((part) => part({ app, api, t }))
const each = (hook) => (...given) => { for (const part of parts) part[hook]?.(...given) }

const style = document.createElement('link')
style.rel = 'stylesheet'
style.href = new URL('./style.css', import.meta.url).href
document.head.append(style)

app.registerExtension({
  name: 'seqlora',
  async setup() {
    await loadWords(app, api) // before any node is made
    for (const part of parts) await part.setup?.()
  },
  beforeConfigureGraph: each('beforeConfigureGraph'),
  nodeCreated: each('nodeCreated'),
  afterConfigureGraph: each('afterConfigureGraph'),
  refreshComboInNodes: each('refreshComboInNodes')
})
